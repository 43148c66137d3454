"""Everything that only realtime_detect.py needs. It may not import from `expressions.training`."""
