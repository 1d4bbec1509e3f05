"""The networks; :mod:`~ase_definet.model.protocol` says what each can do, and ``architectures`` which there are."""
