"""Many structures: enumeration, screens, their report."""
