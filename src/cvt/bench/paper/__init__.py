"""The paper's tables: counted, or trained again at a small scale."""
