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

try:
    import fastapi  # noqa: F401
    import fastapi_offline  # noqa: F401
    import jiwer  # noqa: F401
    import num2words  # noqa: F401
    import prometheus_client  # noqa: F401
    import pydantic_settings  # noqa: F401
    import python_multipart  # noqa: F401
    import pythonjsonlogger  # noqa: F401
    import soundfile  # noqa: F401
    import soxr  # noqa: F401
    import transformers  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"ewc_tutorial.speech needs {error.name}: pip install 'ewc-tutorial[speech]'"
    ) from error
