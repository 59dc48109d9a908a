"""One verb a file: ``run(config) -> folder``. Configs import nothing heavy, so that ``--help`` is quick."""
