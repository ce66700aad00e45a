"""EWC in other people's training loops: Lightning and Avalanche. (Transformers: ``huggingface``.)

Each is :meth:`EWC.attach <ewc_tutorial.ewc.EWC.attach>` at the right moment, and nothing else. The
modules want their framework to be installed: the extra ``frameworks``.
"""
