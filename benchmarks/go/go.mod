module twin

go 1.22
