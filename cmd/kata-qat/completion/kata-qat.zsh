#compdef kata-qat
# zsh completion for kata-qat. Save it as _kata-qat in a directory of $fpath, or
# load it with:
#   source <(kata-qat completion zsh)
_kata_qat() {
    local -a suggestions
    suggestions=("${(@f)$("${(@Q)words[1,CURRENT-1]}" "${(Q)words[CURRENT]}" --generate-bash-completion 2>/dev/null)}")
    if [[ -n "${suggestions[1]}" ]]; then
        compadd -a suggestions
    else
        _files
    fi
}
if [[ "${funcstack[1]}" == _kata-qat ]]; then
    _kata_qat "$@"
else
    compdef _kata_qat kata-qat
fi
