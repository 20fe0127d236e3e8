# Equipoise for one NVIDIA GPU. This file has not been built by those who wrote it: where it was written there were neither the
# images nor a GPU. Please report what does not work.
#
#   docker build -t equipoise .
#   docker run --rm --gpus all -v "$PWD:/work" -v "$HOME/.cache:/root/.cache" equipoise train recipe.yaml
#
# The driver must run the CUDA of the image: `nvidia-smi` shows what it runs, and `--build-arg CUDA=...` names another image.

ARG CUDA=12.8.1
ARG SYSTEM=ubuntu24.04

FROM ubuntu:24.04 AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates curl pkg-config \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/root/.cargo/bin:$PATH
# The toolchain itself is what rust-toolchain.toml names.
RUN curl -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain none --profile minimal
WORKDIR /equipoise
COPY . .
RUN cargo build --release --locked --features cuda

# Has cuBLAS and NVRTC; the driver comes from the host.
FROM nvidia/cuda:${CUDA}-runtime-${SYSTEM}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /equipoise/target/release/equipoise /usr/local/bin/equipoise
WORKDIR /work
ENTRYPOINT ["equipoise"]
