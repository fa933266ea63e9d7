# Generated from common/speed/__init__.py: edit that file, then run `make sync`.
