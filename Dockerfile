# The smallest container: one static binary, and a directory for the mail. See "Containers" in the README.
#
#     docker build -t mailchute .
#
# The last stage alone, around a binary that is there already (DIR holds `mailchute` and an empty directory `mail`):
#
#     docker build -t mailchute --build-context build=DIR .

# Alpine's C library is musl, for which Rust links statically. At least the rust-version of Cargo.toml.
FROM docker.io/library/rust:1.95-alpine AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked
RUN install -m 0755 target/release/mailchute /mailchute && mkdir -m 0755 /mail
# A program that asks for a loader finds none in the next stage.
RUN readelf --program-headers /mailchute >/headers && ! grep INTERP /headers

FROM scratch
LABEL org.opencontainers.image.title="mailchute" \
      org.opencontainers.image.description="Takes mail by SMTP and has it safely in a Maildir before it says 250" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /mailchute /mailchute
COPY --from=build --chown=65532:65532 /mail /mail
# All addresses of the container, which are not those of the machine. Maildirs of recipients (MAILCHUTE_MAILBOXES=/mail)
# have room beside this one, whose name none of them can have.
ENV MAILCHUTE_LISTEN=0.0.0.0:2525 \
    MAILCHUTE_MAILDIR=/mail/Maildir
# By number, as there is no /etc/passwd.
USER 65532:65532
VOLUME /mail
EXPOSE 2525
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=3s --start-period=5s CMD ["/mailchute", "healthcheck"]
ENTRYPOINT ["/mailchute"]
