"""The rules of public benchmarks as pure functions; each rule stands in the docstring of its function."""
