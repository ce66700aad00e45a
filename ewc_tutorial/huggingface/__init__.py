"""EWC for models of Hugging Face Transformers, with the Trainer and with LoRA::

    from ewc_tutorial import EWC
    from ewc_tutorial.huggingface import EWCTrainer, consolidate

    ewc = EWC(model, lam=1.0)
    consolidate(ewc, old_data)                       # the *old* data, at the trained weights
    EWCTrainer(model, args, train_dataset=new_data, ewc=ewc, old_eval_dataset=old_test).train()

* ``trainer``: :class:`EWCTrainer` and the mixin it is made of;
* ``callback``: :class:`EWCCallback`, for a Trainer that is somebody else's;
* ``sequences``: :func:`consolidate` and :func:`sequence_fisher`, one sample = one sequence;
* ``own_text``: text from the model itself, where the old data cannot be had;
* ``batches``: batches of dicts out of whatever the data is;
* ``tasks``: what a model is for;
* ``logits``: a model as a function from a batch to logits, and the labels for them;
* ``ctc``: the likelihood of speech recognisers;
* ``lora``: :class:`LoraEWC`, a penalty on what an adapter does to the weights.
"""

try:
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ewc_tutorial.huggingface needs Transformers: pip install 'ewc-tutorial[huggingface]'"
    ) from error

from ewc_tutorial.huggingface.batches import pad_batch
from ewc_tutorial.huggingface.callback import EWCCallback
from ewc_tutorial.huggingface.ctc import CTC
from ewc_tutorial.huggingface.lora import LoraEWC
from ewc_tutorial.huggingface.own_text import own_text
from ewc_tutorial.huggingface.sequences import collator, consolidate, sequence_fisher
from ewc_tutorial.huggingface.trainer import EWCTrainer, EWCTrainerMixin

__all__ = [
    "CTC",
    "EWCCallback",
    "EWCTrainer",
    "EWCTrainerMixin",
    "LoraEWC",
    "collator",
    "consolidate",
    "own_text",
    "pad_batch",
    "sequence_fisher",
]
