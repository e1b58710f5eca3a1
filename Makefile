# BrickFS. 'make try' ends with a mounted volume, 'make test' runs every test; both as root.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
BINARIES := brickd brickfs brickctl
# mount(8) looks for brickfs in these directories only.
MOUNT_PATH := /usr/sbin /usr/bin /sbin /bin
SOAK_ROUNDS ?= 10
SIM_SEEDS ?= 10000
# Nodes that the sets of a history lie on at most; with 3 about one history in 10,000 still fails.
SIM_NODES ?= 1

# The POSIX test suite that 'make test' runs.
PJDFSTEST_VERSION := 0.2.2
FSX_VERSION := 0.3.2
TOOLS := target/tools
# Has benchmarks alone, whose library takes long to build.
NOT_TESTED := --exclude brickfs-benches
# Debian keeps the server's programs out of PATH, below a directory of their version.
POSTGRESQL := $(TOOLS)/postgresql
POSTGRESQL_PROGRAM := usr/lib/postgresql/*/bin/pg_amcheck

.PHONY: help deps tools root build try test verify fix bench sim soak install uninstall clean

help:
	@echo "make deps      install what is missing (apt-get, as root)"
	@echo "make tools     build pjdfstest and fsx, which 'make test' runs, into $(TOOLS)"
	@echo "make build     build the release binaries"
	@echo "make try       a playground: four bricks, one node, mounted on /mnt/brickfs (as root)"
	@echo "make test      every test (as root)"
	@echo "make verify    formatting, lints, tests and docs; writes nothing"
	@echo "make fix       apply formatting and the lints' suggestions"
	@echo "make bench     benchmarks of the hot paths: layout, wire, bricks, session"
	@echo "make sim       SIM_SEEDS (10,000) simulated histories on SIM_NODES (1) nodes"
	@echo "make soak      every test, the long ones too, SOAK_ROUNDS times"
	@echo "make install   binaries to DESTDIR/PREFIX/bin, mount helper to DESTDIR/sbin"
	@echo "make uninstall, make clean"

root:
	@test "$$(id -u)" = 0 || { echo "BrickFS mounts and keeps owners on its bricks: run this as root" >&2; exit 1; }

# A package is missing when the program that is used of it is. PostgreSQL is unpacked into target/tools, for its package
# would make a user, databases and a service on this machine; only the libraries that it is linked with are installed.
deps:
	@export PATH="$$PATH:/usr/sbin:/sbin"; missing=""; \
	for pair in fusermount3:fuse3 getfattr:attr getfacl:acl losetup:mount mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs fio:fio git:git \
	  sqlite3:sqlite3 dbench:dbench stress-ng:stress-ng nft:nftables; do \
	  command -v "$${pair%%:*}" >/dev/null 2>&1 || missing="$$missing $${pair#*:}"; \
	done; \
	postgresql=""; \
	ls /$(POSTGRESQL_PROGRAM) >/dev/null 2>&1 || ls $(POSTGRESQL)/$(POSTGRESQL_PROGRAM) >/dev/null 2>&1 || postgresql="postgresql"; \
	if [ -z "$$missing$$postgresql" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then \
	  echo "missing packages:$$missing $$postgresql; run 'make deps' as root to install them" >&2; exit 1; \
	fi; \
	apt-get update -qq || exit 1; \
	if [ -n "$$postgresql" ]; then \
	  server="$$(apt-cache depends postgresql | sed -n 's/.*Depends: \(postgresql-[0-9]*\)$$/\1/p')"; \
	  postgresql="$$server $$(echo "$$server" | sed 's/-/-client-/')"; \
	  missing="$$missing $$(apt-cache depends $$postgresql | sed -n 's/^ *Depends: \(lib.*\|tzdata\)$$/\1/p' | grep -v llvm | sort -u | \
	    while read -r name; do dpkg -s "$$name" >/dev/null 2>&1 || printf ' %s' "$$name"; done)"; \
	fi; \
	if [ -n "$${missing# }" ]; then \
	  echo "installing:$$missing"; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing || exit 1; \
	fi; \
	if [ -n "$$postgresql" ]; then \
	  echo "unpacking: $$postgresql (in $(POSTGRESQL))"; \
	  rm -rf $(POSTGRESQL).new && mkdir -p $(POSTGRESQL).new && cd $(POSTGRESQL).new && \
	  apt-get download -qq -o APT::Sandbox::User=root $$postgresql && \
	  for package in *.deb; do dpkg-deb -x "$$package" . && rm "$$package" || exit 1; done && \
	  cd - >/dev/null && mv $(POSTGRESQL).new $(POSTGRESQL); \
	fi

tools:
	@for tool in pjdfstest:$(PJDFSTEST_VERSION) fsx:$(FSX_VERSION); do \
	  name="$${tool%%:*}"; version="$${tool#*:}"; \
	  if [ ! -x "$(TOOLS)/bin/$$name" ]; then \
	    echo "installing: $$name $$version (in $(TOOLS))"; \
	    CARGO_TARGET_DIR=$(TOOLS)/build $(CARGO) install -q "$$name" --version "$$version" --locked --root $(TOOLS) \
	      || exit 1; \
	    rm -rf $(TOOLS)/build; \
	  fi; \
	done

build:
	$(CARGO) build --release --workspace

try: root deps build
	target/release/brickctl playground start --nodes 1 --bricks 4 --volume demo --mount /mnt/brickfs \
	  --dir /var/tmp/brickfs-playground

test: root deps tools build
	$(CARGO) test --release --workspace $(NOT_TESTED) --no-fail-fast -- --test-threads=1

verify: root deps tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) build --release --workspace
	$(CARGO) test --release --workspace $(NOT_TESTED) --no-fail-fast -- --test-threads=1
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

fix:
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

bench: build
	$(CARGO) bench -p brickfs-benches --benches

sim:
	BRICKFS_SIM_NODES=$(SIM_NODES) BRICKFS_SIM_SEEDS=$(SIM_SEEDS) $(CARGO) test --release -p brickfs-server sim::

soak: root deps tools build
	@for round in $$(seq 1 $(SOAK_ROUNDS)); do \
	  echo "soak round $$round of $(SOAK_ROUNDS)"; \
	  SOAK=1 $(CARGO) test --release --workspace $(NOT_TESTED) -- --test-threads=1 || exit 1; \
	done

install: build
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)/sbin"
	for binary in $(BINARIES); do install -m 0755 "target/release/$$binary" "$(DESTDIR)$(PREFIX)/bin/" || exit 1; done
	sed 's|@BINDIR@|$(PREFIX)/bin|' deploy/sbin/mount.brickfs > "$(DESTDIR)/sbin/mount.brickfs"
	chmod 0755 "$(DESTDIR)/sbin/mount.brickfs"
	case " $(MOUNT_PATH) " in *" $(PREFIX)/bin "*) ;; *) \
	  install -d "$(DESTDIR)/usr/bin" && ln -sf "$(PREFIX)/bin/brickfs" "$(DESTDIR)/usr/bin/brickfs" ;; esac
	install -d "$(DESTDIR)/etc/systemd/system"
	sed 's|@BINDIR@|$(PREFIX)/bin|' deploy/systemd/brickd.service > "$(DESTDIR)/etc/systemd/system/brickd.service"

uninstall:
	for binary in $(BINARIES); do rm -f "$(DESTDIR)$(PREFIX)/bin/$$binary"; done
	if [ "$$(readlink "$(DESTDIR)/usr/bin/brickfs")" = "$(PREFIX)/bin/brickfs" ]; then rm -f "$(DESTDIR)/usr/bin/brickfs"; fi
	rm -f "$(DESTDIR)/sbin/mount.brickfs" "$(DESTDIR)/etc/systemd/system/brickd.service"

clean:
	$(CARGO) clean
