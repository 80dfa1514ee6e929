"""placeholder"""
from gemelo.engine.kv import KVCache as Snapshot
