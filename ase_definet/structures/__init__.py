"""How structures are read, written and described: files, cells, neighbours, charges, constraints."""
