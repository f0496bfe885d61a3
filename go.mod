module github.com/kata-qat/kata-qat

go 1.26.0
