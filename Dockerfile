# One image for every process of Flashsale, and a PgBouncer of the same Debian.
#
#   docker build --target flashsale .   all processes and the `flashsale` command; production uses this one
#   docker build --target demo .        the same, with the mailbox; the payment simulator is in both
#   docker build --target pooler .      PgBouncer
#
# BASE is a Debian 12 with Python 3.11. The process is the command: `python3 -m edge`, `python3 -m workers.relay`.

ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libpq-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY devstack/compose/locks/ locks/
# The tools stay in this stage. psycopg's C implementation and the modules of the order path are compiled here.
RUN python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --require-hashes -r locks/build.txt \
    && /opt/tools/bin/pip wheel --no-build-isolation --require-hashes -r locks/runtime.txt --wheel-dir /wheels \
    && /opt/tools/bin/pip wheel --no-build-isolation --require-hashes -r locks/demo.txt --wheel-dir /demo-wheels
COPY . .
RUN /opt/tools/bin/pip wheel --no-build-isolation --no-deps . --wheel-dir /wheels
# In the place of the last stages: scripts of a virtual environment contain its path.
RUN python3 -m venv --without-pip /opt/flashsale \
    && /opt/tools/bin/pip --python /opt/flashsale/bin/python3 install --no-index --no-deps /wheels/*.whl

FROM ${BASE} AS flashsale
RUN apt-get update \
    && apt-get install -y --no-install-recommends libpq5 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 flashsale \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin flashsale \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=build /opt/flashsale /opt/flashsale
COPY --chmod=0755 devstack/compose/ready.sh /usr/local/bin/ready
# /data: the mount point of a volume, for the few programs that keep files.
# PSYCOPG_IMPL: a missing C implementation is an error, never the slow one in Python.
ENV PATH=/opt/flashsale/bin:$PATH \
    PSYCOPG_IMPL=c PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 LC_ALL=C.UTF-8 TZ=UTC
USER 10001:10001
WORKDIR /
CMD ["python3", "-m", "edge"]

FROM build AS demo-build
RUN /opt/tools/bin/pip install --no-index --no-deps --target /opt/demo /demo-wheels/*.whl

FROM flashsale AS demo
COPY --from=demo-build /opt/demo /opt/demo
ENV PYTHONPATH=/opt/demo

FROM ${BASE} AS pooler
RUN apt-get update \
    && apt-get install -y --no-install-recommends pgbouncer \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 pooler \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pooler
COPY devstack/compose/pgbouncer.ini /etc/pgbouncer/common.ini
COPY --chmod=0755 devstack/compose/pooler.sh /usr/local/bin/pooler
USER 10001:10001
WORKDIR /
CMD ["pooler"]
