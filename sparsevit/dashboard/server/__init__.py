"""The dashboard's server: pages of our own and optuna-dashboard behind one gate, on one port."""
