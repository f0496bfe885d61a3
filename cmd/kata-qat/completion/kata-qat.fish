# fish completion for kata-qat. Load it with:
#   kata-qat completion fish | source
function __kata_qat_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    command $words[1] $words[2..-1] "$current" --generate-bash-completion 2>/dev/null
end
complete -c kata-qat -f -a '(__kata_qat_complete)'
complete -c kata-qat -n '__fish_seen_subcommand_from dump' -l bundle -r -F
