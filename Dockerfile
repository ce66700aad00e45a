# Two images. `course` holds the notebooks, the tests and all that they need, and opens JupyterLab:
#   docker build --target course --tag ewc-course . && docker run -p 127.0.0.1:8888:8888 ewc-course
# `speech`, the last and so the one without --target, is the service; docs/speech.md says how to run it.
FROM python:3.13-slim AS base

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes ffmpeg \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home learner \
    && install --directory --owner=learner /app /opt/venv

USER 1000
ENV PATH=/opt/venv/bin:$PATH \
    VIRTUAL_ENV=/opt/venv \
    PIP_NO_CACHE_DIR=1
WORKDIR /app
COPY constraints.txt ./
# cpu, or the name of a build for NVIDIA GPUs, such as cu126, which is 4 GB larger.
ARG TORCH_BACKEND=cpu
RUN python -m venv /opt/venv \
    && pip install --no-cache-dir --constraint constraints.txt uv \
    && uv pip install --no-cache --torch-backend="$TORCH_BACKEND" --constraint constraints.txt torch torchvision


FROM base AS course

USER 0
# What the tests of the browser and of the service look for.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes chromium curl espeak-ng git make \
    && rm -rf /var/lib/apt/lists/*

USER 1000
# `make lab` and `make test` take this environment in place of .venv.
ENV EWC_TUTORIAL_VENV=/opt/venv
COPY --chown=1000 . .
RUN python -c "import make; make.set_up('test', ranges=False, torch_index='')"
EXPOSE 8888 8017
CMD ["make", "lab", "LAB_OPTIONS=--ip=0.0.0.0 --no-browser"]


FROM base AS speech

USER 0
RUN install --directory --owner=learner --mode=700 /data

USER 1000
COPY --chown=1000 pyproject.toml README.md LICENSE ./
COPY --chown=1000 ewc_tutorial ewc_tutorial
RUN pip install --no-cache-dir --constraint constraints.txt ".[speech]"

# Downloaded models are kept with the data.
ENV EWC_SPEECH_DATA=/data/service \
    EWC_SPEECH_HOST=0.0.0.0 \
    EWC_SPEECH_LOG_FORMAT=json \
    HF_HOME=/data/hub
VOLUME /data
EXPOSE 8017
HEALTHCHECK --interval=30s --timeout=5s --start-period=30m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8017/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "ewc_tutorial.speech"]
