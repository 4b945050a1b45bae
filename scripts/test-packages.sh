#!/bin/sh
# Brings the programs the tests speak to on Debian: Postfix with SASL, Chromium and strace.
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

say() { echo "test-packages: $*"; }

has() { command -v "$1" >/dev/null; }

has_file() { [ -e "$1" ]; } # $1: the first match of a pattern, or the pattern itself

look() { # fills mail, browser and tracer with the Debian packages that are missing
    mail='' browser='' tracer=''
    has postfix || mail=postfix
    has saslpasswd2 || mail="$mail sasl2-bin"
    has_file /usr/lib/*/sasl2/libcrammd5.so* || has_file /usr/lib*/sasl2/libcrammd5.so* ||
        mail="$mail libsasl2-modules"
    has chromium || browser=chromium
    has strace || tracer=strace
    missing=$(echo $mail $browser $tracer)
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
trap 'give_back; forget; rm -f "$log"' EXIT
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
}
exit 0
