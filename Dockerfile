# docker build -t inference-advisor .
# docker run --rm -v "$PWD:/work" inference-advisor --model meta-llama/Llama-3.1-8B-Instruct --gpu h100
# Plans and checks; nothing of CUDA is in it. With the NVIDIA container runtime it sees the machine's GPUs (NVML).
# To apply plans too (PyTorch, ModelOpt; several GB): docker build --build-arg EXTRAS=apply,hub,s3,serve -t inference-advisor .
FROM python:3.12-slim AS build
ARG EXTRAS=hub,s3,serve
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY advisor advisor
COPY rules rules
COPY profiles profiles
RUN pip wheel --no-cache-dir --wheel-dir /wheels ".[${EXTRAS}]"

FROM python:3.12-slim
ARG EXTRAS=hub,s3,serve
COPY --from=build /wheels /wheels
# the wheels carry their versions
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --no-index --find-links /wheels "inference-advisor[${EXTRAS}]" \
    && rm -r /wheels \
    && useradd --uid 10001 --create-home advise
USER 10001
WORKDIR /work
ENTRYPOINT ["advise"]
CMD ["--help"]
