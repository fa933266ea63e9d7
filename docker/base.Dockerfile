# What every task image stands on: Python, a C compiler, a Chinese font and a user without rights.
#
#   docker build -t finetune-base docker/          (Docker before 23: DOCKER_BUILDKIT=1 docker build ...)
#
# PyTorch's wheels bring their own CUDA libraries, so the smallest CUDA image is enough. The host needs NVIDIA's driver
# 580 or newer; for older ones there is CUDA_IMAGE=nvidia/cuda:12.8.1-base-ubuntu24.04 (make image TASK=... CUDA=12.8).
ARG CUDA_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04
FROM ${CUDA_IMAGE}

# gcc and the headers: Triton compiles a small C file for every kernel it launches. The font: plots with Chinese.
# tini: process 1 ignores SIGTERM until it has a handler, and `docker stop` must work while Python still imports.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates fonts-wqy-microhei gcc libc6-dev libcap2-bin python3 python3-dev python3-venv tini \
    && apt-get clean && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# Ubuntu 24.04 has given 1000 to a user of its own; it is the id of the first person on most hosts, so take it back.
RUN if taken=$(id -nu 1000); then userdel --remove "$taken"; fi \
    && useradd --uid 1000 --user-group --no-create-home --shell /bin/bash app \
    && install -d -o app -g app /workspace \
    && install -d -o app -g app -m 1777 /workspace/models /workspace/data /workspace/outputs

# The one program here with a right of its own, and the only one it has: to hand over an empty folder (see the file).
RUN --mount=type=bind,source=claim_mounts.c,target=/tmp/claim_mounts.c \
    gcc -O2 -Wall -Wextra -Werror -o /usr/local/bin/claim-mounts /tmp/claim_mounts.c \
    && setcap cap_chown=ep /usr/local/bin/claim-mounts

# HOME is /tmp because any `--user` can write there. The entrypoint sets the folders again: --env-file beats ENV.
# NVIDIA_DISABLE_REQUIRE: the entrypoint, not NVIDIA's runtime, refuses a driver that is too old, and says what to take.
ENV MODELS_DIR=/workspace/models \
    DATA_DIR=/workspace/data \
    OUTPUT_DIR=/workspace/outputs \
    HF_HOME=/workspace/models/.hf \
    HF_HUB_DISABLE_TELEMETRY=1 \
    UNSLOTH_DISABLE_STATISTICS=1 \
    UNSLOTH_COMPILE_LOCATION=/tmp/unsloth_compiled_cache \
    HOME=/tmp \
    USER=app \
    NVIDIA_DISABLE_REQUIRE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

COPY --chmod=755 entrypoint.sh /usr/local/bin/entrypoint.sh
COPY --chmod=755 doctor.py /usr/local/bin/doctor.py
WORKDIR /app
# As a number: Kubernetes' runAsNonRoot can't look a name up.
USER 1000:1000
ENTRYPOINT ["tini", "--", "entrypoint.sh"]
