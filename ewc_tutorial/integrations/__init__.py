"""EWC where people use it: in other libraries and in a service.

The rest of the package imports nothing of this, so that it works without those libraries.
"""
