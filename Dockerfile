# Two stages: pip and the build tools stay in the first. docs/operations.md says how it is run, ADR 10 why it is so.
# tests/e2e/test_image.py builds this very file, and runs what comes out as its user on a read-only root.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN ["python", "-m", "venv", "/opt/mailchute"]
WORKDIR /src
COPY requirements.lock ./
RUN ["/opt/mailchute/bin/pip", "install", "--no-compile", "--require-hashes", "-r", "requirements.lock"]
COPY pyproject.toml README.md LICENSE ./
COPY alembic ./alembic
COPY app ./app
RUN ["/opt/mailchute/bin/pip", "install", "--no-compile", "--no-deps", "--no-build-isolation", "."]
RUN ["/opt/mailchute/bin/pip", "uninstall", "-y", "editables", "hatchling", "pathspec", "pluggy", "trove-classifiers", "setuptools", "pip"]

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Mailchute" \
      org.opencontainers.image.description="An HTTP service that sends e-mail through your relay" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/mailchute /opt/mailchute
# The root is read-only when it runs, and the base brings the standard library without bytecode: what is not compiled
# here would be compiled at every start and every health check. Unchecked, because nothing in here ever changes.
RUN ["/opt/mailchute/bin/python", "-c", "import compileall, sysconfig; [compileall.compile_dir(sysconfig.get_path(of), quiet=2, invalidation_mode=compileall.py_compile.PycInvalidationMode.UNCHECKED_HASH) for of in ('stdlib', 'purelib')]"]
# Owned by the user, so that a new volume mounted there is.
RUN ["install", "-d", "-m", "0700", "-o", "10001", "-g", "10001", "/var/lib/mailchute"]
# SQLite's temporary files go to the volume: there may be no other folder to write to.
ENV PATH=/opt/mailchute/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SQLITE_TMPDIR=/var/lib/mailchute \
    MAILCHUTE_LISTEN=0.0.0.0:8587 \
    MAILCHUTE_DATABASE_URL=/var/lib/mailchute/mailchute.db
# A number, so that Kubernetes can see that it is not root's.
USER 10001:10001
VOLUME /var/lib/mailchute
EXPOSE 8587
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["mailchute", "health"]
ENTRYPOINT ["mailchute"]
CMD ["serve"]
