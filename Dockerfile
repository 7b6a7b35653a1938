# CPU:  docker build -t fusion-pipeline .
# CUDA: docker build -t fusion-pipeline:cuda --build-arg BASE=nvidia/cuda:12.6.3-runtime-ubuntu24.04 \
#           --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .
# Run:  docker run --rm -v "$PWD":/data fusion-pipeline run --ct ct.nii.gz --mr mr.nii.gz --output out
# with --gpus all and --device cuda on a GPU. tests/test_packaging.py runs the lines of RUN in a venv.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 VENV=/opt/venv
# a CUDA base brings no Python
RUN command -v python3 >/dev/null || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv ${VENV}
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY fusion_pipeline fusion_pipeline
COPY networks networks
COPY transforms transforms
COPY bundles bundles
# torch first and alone, from the index of its build: pip then keeps it for all that depend on it
RUN ${VENV}/bin/pip install --extra-index-url ${TORCH_INDEX} "$(grep -m 1 '^torch==' constraints.txt)"
RUN ${VENV}/bin/pip install -c constraints.txt .
WORKDIR /data
ENTRYPOINT ["/opt/venv/bin/fusion-pipeline"]
CMD ["--help"]
