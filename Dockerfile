# syntax=docker/dockerfile:1
#
# docker build -t portcullis:0.1.0 .
#
# Where no registry can be reached, scripts/image builds it with a base that it makes itself.

FROM rust:1.95-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /build
COPY . .
# Without debugging information, which is two thirds of the binary.
ENV CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols
RUN cargo build --release --locked --bin portcullis

# Everything that the last stage holds: the binary, the libraries that it is linked to, the system's trust anchors, and how names are looked up.
RUN mkdir -p /image/usr/local/bin /image/etc/ssl/certs /image/etc/portcullis \
    && cp target/release/portcullis /image/usr/local/bin/ \
    && ldd target/release/portcullis | grep -o '/[^ ]*' | xargs -I{} cp -L --parents {} /image/ \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && echo 'hosts: files dns' > /image/etc/nsswitch.conf \
    && echo 'portcullis:x:65532:65532::/nonexistent:/none' > /image/etc/passwd \
    && echo 'portcullis:x:65532:' > /image/etc/group

# No shell, no package manager, nothing to write to: it runs with a read-only root file system.
FROM scratch
COPY --from=build /image/ /
USER 65532:65532
WORKDIR /etc/portcullis
# The file is mounted, with the files that it names next to it. Where `create = true` makes a secret, its folder must be writable for 65532.
ENV PORTCULLIS_CONFIG=/etc/portcullis/gateway.toml
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=4s --start-period=5s --retries=3 CMD ["/usr/local/bin/portcullis", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/portcullis"]
