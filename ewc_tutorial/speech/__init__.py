"""A speech recogniser that learns from corrections: a service around EWC and wav2vec 2.0.

    make speech            # or: python -m ewc_tutorial.speech

Listeners send recordings with the right text; a training job then teaches the model the new voices
while EWC holds what matters for the earlier ones. The importance is measured on *earlier speech*, a
folder of its own, never on the corrections.

From the outside in:

* ``server``, ``app``, ``gate``, ``brake``, ``routes``, ``messages``: the HTTP interface, who may
  come in, what it says; ``logs``, ``metrics``, ``page.html`` for those who watch over it;
* ``service``: what the routes use, ``serving`` the model in use;
* ``settings``: all from environment variables ``EWC_SPEECH_…``;
* ``corrections`` with its ``index``, ``jobs``, ``versions``: what is kept on disk, each safe
  against a kill at any time, by means of ``database``, ``recovery``, ``private`` (and the
  package's ``files``);
* ``pairs``, ``importing``, ``normalising``, ``convert``: corrections as people have them;
* ``trainings``: which runs when; ``runner``, ``worker``: each is a process of its own; ``plan``,
  ``estimate``: its numbers, its time; ``material`` is what it works with,
  ``acceptance`` decides what of it is served;
* ``learning``, ``training``, ``samples``, ``recogniser``, ``audio``: the pipeline itself, which
  knows nothing of HTTP;
* ``base``, ``synthetic``: the model to begin with, and a small one for machines with no network;
* ``client``: starts the server from Python, for the lesson and the tests.
"""

from importlib.util import find_spec

# Looked for, not imported: who imports a folder waits for none of them.
for _name in (
    "fastapi", "fastapi_offline", "httpx", "jiwer", "num2words", "prometheus_client",
    "pydantic_settings", "python_multipart", "pythonjsonlogger", "soundfile", "soxr", "sqlalchemy",
    "transformers", "uvicorn",
):  # fmt: skip
    if find_spec(_name) is None:
        raise ImportError(
            f"ewc_tutorial.speech needs {_name}: pip install 'ewc-tutorial[speech]'", name=_name
        )
