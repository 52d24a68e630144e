module vulnerable

go 1.26.0
