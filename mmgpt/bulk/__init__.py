"""Captions of any number of pictures, in this process (local.py) or on a cluster (ray.py), into files (captions.py)."""
