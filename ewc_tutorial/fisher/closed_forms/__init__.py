"""Squared per-sample gradients without forming a gradient, from inputs and outputs of layers.

* ``layers``: what the gradients of each kind of layer are made of;
* ``calls``: records what a layer was given;
* ``graph``: finds every use of a parameter, also those that no layer saw;
* ``sums``: squares and sums;
* ``squares``: all of it for one batch.
"""
