module github.com/kata-qat/kata-qat/test/tools/standin

go 1.26.6
