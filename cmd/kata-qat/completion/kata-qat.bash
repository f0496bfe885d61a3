# bash completion for kata-qat. Load it with:
#   source <(kata-qat completion bash)
_kata_qat() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <("${COMP_WORDS[@]:0:COMP_CWORD}" "${COMP_WORDS[COMP_CWORD]}" --generate-bash-completion 2>/dev/null)
}
complete -o default -F _kata_qat kata-qat
