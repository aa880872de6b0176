# Serves /config/config.toml. Mount the config, its secrets, its state and the disks there:
#
#   docker build -t pyiscsi-target .
#   docker run -p 3260:3260 -v "$PWD/lab:/config" --user "$(id -u):$(id -g)" pyiscsi-target
#
# Without --user the process is uid 1000, which must be able to write to state_dir and the disks.

FROM python:3.13-slim AS build
COPY . /src
RUN python -m venv /opt/pyiscsi-target \
    && /opt/pyiscsi-target/bin/pip install --no-cache-dir /src

FROM python:3.13-slim
RUN useradd --uid 1000 --user-group --no-create-home --shell /usr/sbin/nologin iscsi \
    && install -d -o iscsi -g iscsi /config
COPY --from=build /opt/pyiscsi-target /opt/pyiscsi-target
USER iscsi
WORKDIR /config
VOLUME /config
EXPOSE 3260 9860
# The server drains on SIGTERM; give `docker stop` more than drain_timeout_s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/pyiscsi-target/bin/pyiscsi-target"]
CMD ["serve", "/config/config.toml"]
