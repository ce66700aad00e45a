# The speech-corrections service: docs/speech.md says how to run it.
FROM python:3.13-slim

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes ffmpeg \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home speech \
    && install --directory --owner=speech --mode=700 /data

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ewc_tutorial ewc_tutorial

# The address of a package index with PyTorch for the CPU alone makes the image 4 GB smaller.
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--index-url="$TORCH_INDEX"} torch \
    && pip install --no-cache-dir --constraint constraints.txt ".[speech-hosts]"

USER 1000
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
