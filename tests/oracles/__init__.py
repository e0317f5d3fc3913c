"""Independent oracles: what the SQL models must compute, written again in plain Python from the formulas.

Nothing here reads a model, a macro or a database. `clock` cuts buckets trade by trade, `features` computes
features and labels with numpy, `libraries` asks third-party packages for the same quantities.
"""
