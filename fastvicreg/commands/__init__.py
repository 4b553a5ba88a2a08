"""One module a command: each has ``main(arguments) -> exit code`` and is imported when it is called."""
