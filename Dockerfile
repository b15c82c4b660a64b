# Training and drawing on NVIDIA GPUs; `make image` builds it. Files of yours stay in the folder that you mount:
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" --volume "$PWD:/work" microdit microdit-train trainer=gpu
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS system
# A compiler for Triton and the CPU kernels; torch's own wheels bring the rest of CUDA.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

# The locked packages first, so that another source tree does not fetch them again; the version from .git, which stays here.
FROM system AS built
WORKDIR /source
COPY requirements.lock ./
RUN python3 -m venv /opt/venv && pip install --no-cache-dir --requirement requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM system
COPY --from=built /opt/venv /opt/venv
# Whoever runs it may write caches (compiled kernels, weights from a hub) and nothing else outside /work.
RUN useradd --create-home --uid 10001 microdit && mkdir --mode=1777 /work /cache
ENV HOME=/cache
USER microdit
WORKDIR /work
CMD ["microdit-train", "--help"]
