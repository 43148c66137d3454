"""Everything that only train.py needs. It may not import from `expressions.inference`."""
