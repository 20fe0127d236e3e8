# Equipoise for one NVIDIA GPU. This file has not been built by those who wrote it: where it was written there was neither the
# image nor a GPU. Please report what does not work.
#
#   docker build --build-arg CUDA_COMPUTE_CAP=86 -t equipoise .
#   docker run --rm --gpus all -v "$PWD:/work" -v "$HOME/.cache/huggingface:/root/.cache/huggingface" equipoise train recipe.yaml
#
# CUDA_COMPUTE_CAP: the GPU's compute capability (80: A100, 86: RTX 30, 89: RTX 40, 90: H100). What is built for 80 also runs on
# newer GPUs. The driver must run the CUDA of the image: `nvidia-smi` shows what it runs.

ARG CUDA=12.8.1
ARG SYSTEM=ubuntu24.04

FROM nvidia/cuda:${CUDA}-devel-${SYSTEM} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates curl pkg-config \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/root/.cargo/bin:$PATH
# The toolchain itself is what rust-toolchain.toml names.
RUN curl -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain none --profile minimal
WORKDIR /equipoise
COPY . .
ARG CUDA_COMPUTE_CAP=80
RUN CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP} cargo build --release --locked --features cuda

# Has cuBLAS, cuRAND and NVRTC; the driver comes from the host.
FROM nvidia/cuda:${CUDA}-runtime-${SYSTEM}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /equipoise/target/release/equipoise /usr/local/bin/equipoise
WORKDIR /work
ENTRYPOINT ["equipoise"]
