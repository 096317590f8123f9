#!/usr/bin/env bash
# Installs the appliance as a service, upgrades it, or takes it away again.
#
#   sudo scripts/install.sh              for the machine: user appliance, /opt/appliance,
#                                        /etc/appliance, /var/lib/appliance, a systemd unit
#   scripts/install.sh --user            for you alone, below your home, no root needed
#   … --uninstall [--purge]              takes the program away; --purge also the configuration,
#                                        models and state, which stay otherwise
#   … --no-model                         does not fetch the default model
#
# Run it again to upgrade: the new version is built beside the old one and takes its place in one
# step; configuration and state stay as they are. Running it twice changes nothing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

scope=system action=install purge=no model=yes
for argument in "$@"; do
    case $argument in
    --user) scope=user ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    --no-model) model=no ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
    *) fail "unknown option: $argument" "$0 --help" ;;
    esac
done
[ "$purge" = no ] || [ "$action" = uninstall ] || fail '--purge goes with --uninstall'

# ── Places ───────────────────────────────────────────────────────────────────────────────────────

if [ $scope = system ]; then
    [ "$(id -u)" = 0 ] || fail 'installing for the machine needs root' "sudo $0   (or: $0 --user)"
    program=/opt/appliance
    config=/etc/appliance
    state=/var/lib/appliance
    models=$state/models
    command=/usr/local/bin/appliance
    unit_source=appliance.service
    unit=/etc/systemd/system/appliance.service
    systemctl=(systemctl)
else
    data=${XDG_DATA_HOME:-$HOME/.local/share}/appliance
    program=$data
    config=${XDG_CONFIG_HOME:-$HOME/.config}/appliance
    state=${XDG_STATE_HOME:-$HOME/.local/state}/appliance
    models=$data/models
    command=$HOME/.local/bin/appliance
    unit_source=appliance-user.service
    unit=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user/appliance.service
    systemctl=(systemctl --user)
fi
releases=$program/releases

has_systemd() {
    [ -d /run/systemd/system ] && "${systemctl[@]}" list-units --no-pager >/dev/null 2>&1
}

# ── Installing ───────────────────────────────────────────────────────────────────────────────────

# What makes two installed versions differ: the program, its locks, and llama.cpp's build.
release_name() {
    (
        cd "$REPOSITORY"
        find appliance config.toml models/manifest.toml pyproject.toml requirements*.lock \
            -type f -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum
        wheel_folder "$(find_python)"
    ) | sha256sum | cut -c1-12
}

install_user_and_folders() {
    if [ $scope = system ] && ! getent passwd appliance >/dev/null; then
        getent group appliance >/dev/null || groupadd --system appliance
        useradd --system --gid appliance --home-dir "$state" --shell /usr/sbin/nologin appliance
    fi
    if [ $scope = system ]; then
        install -d -m 0755 "$program" "$releases"
        install -d -m 0750 -o appliance -g appliance "$config"
        install -d -m 0700 -o appliance -g appliance "$state" "$models"
    else
        install -d -m 0755 "$program" "$releases" "$(dirname "$command")" "$(dirname "$unit")"
        install -d -m 0700 "$config" "$state" "$models"
    fi
}

# Builds the environment under its own name, then points the link at it: the running daemon keeps
# its files until it is restarted, and a build that fails leaves the old version in place.
install_release() { # NAME
    local venv=$releases/$1
    if [ ! -e "$venv/.complete" ]; then
        mkdir -p "$CACHE/wheels"
        make_venv "$venv"
        install_locked "$venv" requirements.lock
        install_llama "$venv"
        install_package "$venv" --copy
        "$venv/bin/python" -I -m compileall -q "$venv/lib" || true
        touch "$venv/.complete"
    fi
    ln -sfn "releases/$1" "$program/venv.new"
    mv -T "$program/venv.new" "$program/venv"
    ln -sfn "$program/venv/bin/appliance" "$command"
}

install_config() {
    local example=$REPOSITORY/config.toml
    if [ $scope = system ]; then
        install -m 0640 -o appliance -g appliance "$example" "$config/config.toml.example"
        [ -e "$config/config.toml" ] ||
            install -m 0640 -o appliance -g appliance "$example" "$config/config.toml"
    else
        install -m 0600 "$example" "$config/config.toml.example"
        [ -e "$config/config.toml" ] || install -m 0600 "$example" "$config/config.toml"
    fi
    "$command" config check "$config/config.toml" ||
        say "   the configuration was kept, but the daemon will not start with it as it is"
}

install_model() {
    [ $model = yes ] || return 0
    if [ $scope = system ]; then
        STATE_DIRECTORY=$state CONFIGURATION_DIRECTORY=$config fetch_default_model "$command"
        chown -R appliance:appliance "$models"
    else
        fetch_default_model "$command"
    fi
}

install_unit() {
    install -m 0644 "$REPOSITORY/systemd/$unit_source" "$unit"
    if ! has_systemd; then
        say '   systemd does not run here; the unit is in place, and this starts the daemon by hand:'
        say "   $(start_by_hand)"
        return
    fi
    "${systemctl[@]}" daemon-reload
    "${systemctl[@]}" enable --quiet appliance.service
    "${systemctl[@]}" restart appliance.service ||
        fail 'the daemon does not start' "${systemctl[*]} status appliance; journalctl -u appliance"
}

start_by_hand() {
    if [ $scope = user ]; then
        printf '%s serve' "$command"
    else
        printf 'install -d -m 0750 -o appliance -g appliance /run/appliance && '
        printf 'STATE_DIRECTORY=%s setpriv --reuid appliance --regid appliance --init-groups %s serve' \
            "$state" "$command"
    fi
}

remove_old_releases() { # NAME
    find "$releases" -mindepth 1 -maxdepth 1 -not -name "$1" -exec rm -rf {} +
}

# ── Taking away ──────────────────────────────────────────────────────────────────────────────────

uninstall() {
    if has_systemd && [ -e "$unit" ]; then
        "${systemctl[@]}" disable --now --quiet appliance.service || true
    fi
    rm -f "$unit"
    ! has_systemd || "${systemctl[@]}" daemon-reload
    [ "$(readlink "$command" 2>/dev/null)" != "$program/venv/bin/appliance" ] || rm -f "$command"
    rm -rf "$releases" "$program/venv"
    [ $scope = user ] || rmdir --ignore-fail-on-non-empty "$program" 2>/dev/null || true
    if [ $purge = yes ]; then
        rm -rf "$config" "$state" "$models"
        if [ $scope = system ]; then
            userdel appliance 2>/dev/null || true # with its group, if nobody else is in it
            groupdel appliance 2>/dev/null || true
        fi
        say "removed, with configuration, models and state"
    else
        say "removed; kept: $config (configuration), $state (state), $models (models)"
        say "   '$0${1:+ $1} --uninstall --purge' takes these too"
    fi
}

# ── Which of them ────────────────────────────────────────────────────────────────────────────────

if [ $action = uninstall ]; then
    uninstall "$([ $scope = system ] || echo --user)"
    exit
fi

name=$(release_name)
step "Installing version $name into $program"
install_user_and_folders
install_release "$name"
install_config
install_model
install_unit
! has_systemd || remove_old_releases "$name" # without it, a daemon may still run from one
step 'Installed'
say "   configuration  $config/config.toml"
say "   state          $state"
say "   try            $command ask assistant \"What are you?\""
if [ $scope = system ]; then
    say "   let others in  usermod -aG appliance NAME"
fi
