#!/bin/sh
# Brings the programs the tests speak to on Debian: Postfix with SASL, Chromium, strace, faketime, curl, nginx, Prometheus, Node.
# Exim and OpenSMTPD cannot be installed beside it: they are downloaded and unpacked under /var/cache.
# For the image it brings buildah, and lays a minimal Debian there, on which the Dockerfile's steps are carried out.
# Starts nothing, removes nothing, never touches a mail server that is there, and does not fail:
# what it cannot bring it names, and the tests that need it skip themselves.
set -u
export LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
PATH=$PATH:/usr/sbin:/sbin

policy=/usr/sbin/policy-rc.d
kept=$policy.kept-by-mailchute # the owner's, while ours stands in its place
ours='#!/bin/sh
# mailchute test-packages: nothing starts
exit 101'
cache=/var/cache/mailchute-test-packages # tests/support/jail.py runs what is in it
suite=debian-bookworm # what tests/support/image.py builds the image on

say() { echo "test-packages: $*"; }

has() { command -v "$1" >/dev/null; }

has_file() { [ -e "$1" ]; } # $1: the first match of a pattern, or the pattern itself

is_debian_before() { # $1: a version; what says no version is newer
    release=$(sed -n 's/^VERSION_ID="\{0,1\}\([0-9]*\).*/\1/p' /etc/os-release 2>/dev/null)
    [ -n "$release" ] && [ "$release" -lt "$1" ]
}

look() { # fills mail, browser, tracer, clock, paste, proxy, monitor, script, image and jailed with the Debian packages that are missing
    mail='' browser='' tracer='' clock='' paste='' proxy='' monitor='' script='' image='' jailed='' base=''
    has postfix || mail=postfix
    has saslpasswd2 || mail="$mail sasl2-bin"
    has_file /usr/lib/*/sasl2/libcrammd5.so* || has_file /usr/lib*/sasl2/libcrammd5.so* ||
        mail="$mail libsasl2-modules"
    has chromium || browser=chromium
    # Playwright's own node wants it, and no package that Chromium depends on brings it.
    has_file /usr/lib/*/libatomic.so.1 || has_file /usr/lib*/libatomic.so.1 || browser="$browser libatomic1"
    has strace || tracer=strace
    has_file /usr/lib/*/faketime/libfaketimeMT.so.1 || clock=faketime
    has curl || paste=curl
    has nginx || proxy=nginx
    { has prometheus && has promtool; } || monitor=prometheus
    has node || script=nodejs
    has buildah || image=buildah
    # buildah of Debian 13 and later starts without a network of its own only where this is there.
    is_debian_before 13 || has_file /usr/lib/podman/netavark || image="$image netavark"
    has debootstrap || image="$image debootstrap"
    [ -d $cache/$suite ] || base=$suite
    [ -d $cache/exim4-daemon-light ] || jailed=exim4-daemon-light
    [ -d $cache/opensmtpd ] || jailed="$jailed opensmtpd"
    missing=$(echo $mail $browser $tracer $clock $paste $proxy $monitor $script $image $base $jailed)
}

mail_server_here() { # names what Postfix would get in the way of
    if has_file /usr/sbin/sendmail; then
        owner=$(dpkg-query -S "$(readlink -f /usr/sbin/sendmail)" 2>/dev/null | sed 's/:.*//')
        echo "there is another mail server (${owner:-/usr/sbin/sendmail})"
    elif has_file /etc/postfix/main.cf; then
        echo 'there is a configuration in /etc/postfix'
    elif cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q '^ *[0-9]*: [0-9A-F]*:0019 [0-9A-F:]* 0A '; then
        echo 'something listens on port 25'
    else
        return 1
    fi
}

ours_stands() { [ -w /usr/sbin ] && { has_file "$kept" || grep -qs '^# mailchute' "$policy"; }; }

give_back() { # leaves policy-rc.d as it was found, also by a run that was killed half-way
    if [ -e "$kept" ] || [ -L "$kept" ]; then
        mv -f "$kept" "$policy"
    elif [ -f "$policy" ] && [ "$(cat "$policy")" = "$ours" ]; then
        rm -f "$policy"
    fi
}

hold_services() {
    if [ -e "$policy" ] || [ -L "$policy" ]; then mv -f "$policy" "$kept" || return 1; fi
    printf '%s\n' "$ours" >"$policy" && chmod 755 "$policy"
}

forget() { # the answer meant for our installation must not wait for the owner's
    [ -z "$preset" ] || has postfix || echo PURGE | debconf-communicate postfix >/dev/null 2>&1
}

apt() { # the first argument --remove lets a simulation say what would be removed
    apt-get -q -y -o DPkg::Lock::Timeout=120 --no-install-recommends --no-remove "$@" </dev/null >"$log" 2>&1
}

updated=''
fresh_lists() { [ -z "$updated" ] && updated=yes && say 'apt-get update' && apt update; }

reason() { grep '^E:' "$log" | head -n1 | grep . || tail -n1 "$log"; }

bring() { # $1: the tests that need them; then the packages, none if all are there
    tests=$1
    shift
    [ $# -gt 0 ] || return 0
    if ! apt --remove -s install "$@" && ! { fresh_lists && apt --remove -s install "$@"; }; then
        say "$tests will be skipped, cannot install $*: $(reason)"
        return
    fi
    gone=$(sed -n 's/^Remv \([^ ]*\).*/\1/p' "$log" | tr '\n' ' ')
    if [ -n "$gone" ]; then
        say "$tests will be skipped, not installing $*: that would remove $gone"
        return
    fi
    say "apt-get install $*"
    if ! apt install "$@" && ! { fresh_lists && apt install "$@"; }; then
        say "$tests will be skipped, cannot install $*: $(reason)"
    fi
}

fetched() { # the packages, unpacked in $new/root; nothing keeps its set-uid bit
    rm -rf "$new" && mkdir -p $cache && mkdir -m 700 "$new" && mkdir "$new/root" && cd "$new" || return
    # as root itself: apt's own user could not write here
    apt-get -q -o APT::Sandbox::User=root download "$@" >"$log" 2>&1 || return
    for package in *.deb; do dpkg-deb -x "$package" root >"$log" 2>&1 || return; done
    chmod -R a-s root
}

unpack() { # $1: a mail server; with it come the libraries that this machine lacks
    if ! apt --remove -s install "$1" && ! { fresh_lists && apt --remove -s install "$1"; }; then
        say "the $1 tests will be skipped, cannot download $1: $(reason)"
        return
    fi
    libraries=$(sed -n 's/^Inst \(lib[^ ]*\).*/\1/p' "$log")
    # shellcheck disable=SC2086  # a list of package names
    say "apt-get download $1" $libraries
    # shellcheck disable=SC2086
    if (fetched "$1" $libraries) || { fresh_lists && (fetched "$1" $libraries); }; then
        mv "$new/root" "$cache/$1"
    else
        say "the $1 tests will be skipped, cannot download $1: $(reason)"
    fi
}

mirror() { # where this machine's own Debian comes from; nothing lets debootstrap choose
    # shellcheck disable=SC2016  # apt's placeholders
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -v security | head -n1
}

lay_base() { # a minimal Debian with the python that the Dockerfile's base has
    has debootstrap || return 0
    say "debootstrap ${suite#debian-}"
    rm -rf "$new"
    # shellcheck disable=SC2046  # one word or none
    if mkdir -p $cache && debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
        "${suite#debian-}" "$new" $(mirror) >"$log" 2>&1; then
        rm -rf "$new"/var/cache/apt/archives/*.deb "$new"/var/lib/apt/lists/*
        mv "$new" "$cache/$suite"
    else
        say "the tests of the image will be skipped, no Debian could be laid: $(reason)"
    fi
}

look
[ -n "$missing" ] || ours_stands || exit 0
if [ "$(id -u)" -ne 0 ]; then
    say "tests that need $missing will be skipped: only root can install packages"
    exit 0
fi
if ! has apt-get || ! has dpkg-query; then
    say "tests that need $missing will be skipped: there is no apt-get to install packages with"
    exit 0
fi

[ -w /run ] && exec 9>/run/mailchute-test-packages.lock && flock 9 # one run at a time: policy-rc.d is shared
look # the run before may have brought it all
log=$(mktemp) || exit 0
preset=''
new=$cache/.new
trap 'give_back; forget; rm -rf "$log" "$new"' EXIT
trap 'exit 130' HUP INT TERM
give_back
if ! hold_services; then
    say "tests that need $missing will be skipped: cannot write $policy"
    exit 0
fi

case " $mail " in
*' postfix '*)
    if why=$(mail_server_here); then
        say "the Postfix tests will be skipped, not installing Postfix: $why"
        mail=''
    else
        preset=yes
        echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections >/dev/null 2>&1
    fi
    ;;
esac
# shellcheck disable=SC2086  # lists of package names
{
    bring 'the Postfix tests' $mail
    bring 'the browser tests' $browser
    bring 'tests that trace system calls' $tracer
    bring 'the tests of clocks that jump' $clock
    bring 'the test of the printed curl line' $paste
    bring 'the tests behind a proxy' $proxy
    bring 'the tests of the alert rules' $monitor
    bring 'the tests of the Node recipe' $script
    bring 'the tests of the image' $image
    for server in $jailed; do unpack "$server"; done
    [ -z "$base" ] || lay_base
}
exit 0
