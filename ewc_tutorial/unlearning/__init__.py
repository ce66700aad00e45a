"""Forgetting on purpose.

* ``memory``: :class:`TaskMemory` takes a task back out of the weights and out of EWC's memory;
* ``records``: what it must keep of every task, in memory or in a folder.
"""

from ewc_tutorial.unlearning.memory import TaskMemory

__all__ = ["TaskMemory"]
