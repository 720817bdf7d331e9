# Completion of sw-patch for bash. Install as /etc/bash_completion.d/sw-patch.

_sw_patch() {
    local cur=${COMP_WORDS[COMP_CWORD]} words=''
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        words='apply delete drop-host host-install host-install-async is-applied is-available query query-dependencies
            query-hosts remove show upload upload-dir what-requires'
    else
        case ${COMP_WORDS[1]} in
        apply)
            words="--all --release $(sw-patch completion patches 2>/dev/null)" ;;
        remove)
            words="--skipappcheck $(sw-patch completion patches 2>/dev/null)" ;;
        query-dependencies)
            words="--recursive $(sw-patch completion patches 2>/dev/null)" ;;
        delete | show | what-requires | is-applied | is-available)
            words=$(sw-patch completion patches 2>/dev/null) ;;
        host-install | host-install-async)
            words="--force $(sw-patch completion hosts 2>/dev/null)" ;;
        drop-host)
            ((COMP_CWORD == 2)) && words=$(sw-patch completion hosts 2>/dev/null) ;;
        query)
            words='all applied available committed --release' ;;
        upload)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -X '!*.patch' -- "$cur"; compgen -d -- "$cur")
            return ;;
        upload-dir)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -d -- "$cur")
            return ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}

complete -F _sw_patch sw-patch
