# Generated from common/__init__.py: edit that file, then run `make sync`.
