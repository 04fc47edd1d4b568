"""Example of a third-party package that extends evosearch through entry points.

The tests put this folder on `sys.path`; with the metadata next to it, that is an installed package.
"""
