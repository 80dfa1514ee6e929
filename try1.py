import numpy as np, torch, dataclasses, sys
from tests.conftest import TINY, randomise
from tests.gemma3n import TINY_3N, VARIANTS
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from gemelo.engine.modules.decoder import ModuleDecoder, weights_of
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.memory.per_layer_table import table_of
from gemelo.engine import step
from gemelo.engine.tokens import Tokens
from gemelo.config import Gemma3nConfig
from gemelo.engine.memory.repack import repacked
IDS=[2,*range(30,70)]
G3=dataclasses.replace(TINY["blocks-of-32"], head_dim=64, hidden_size=64, final_logit_softcapping=20.0)
G3N=dataclasses.replace(TINY_3N, vocab_size_per_layer_input=500, intermediate_size=(128,)*12, head_dim=64)
for name, cfg in {**TINY, **VARIANTS, "3n":TINY_3N, "G3":G3,"G3N":G3N}.items():
    is3n=isinstance(cfg, Gemma3nConfig)
    m=(Gemma3n if is3n else Gemma3)(cfg).eval(); randomise(m)
    w=weights_of(m)
    t=table_of(w, cfg.hidden_size_per_layer_input) if is3n else None
    d=NativeDecoder(cfg,w,repacked(cfg,w),t); o=ModuleDecoder(m)
    out=[]
    for dec in (d,o):
        c=dec.cache(200,1,16)
        ids=[i%cfg.vocab_size for i in IDS]
        s=[step.prefill(dec,c,Tokens(ids))]
        for k in range(4): s.append(step.decode(dec,c,[5+k],[len(ids)+k])[0])
        s+=list(step.verify(dec,c,[9,8,7],len(ids)+4))
        c.rewind(0,len(ids)+2)
        s+=list(step.verify(dec,c,[9,8],len(ids)+2))
        c2=c.repeat(2); s+=list(step.decode(dec,c2,[4,5],[len(ids)+4,-1])[:1])
        out.append(np.stack(s))
    print(name, d.is_native, d.kv_format, np.abs(out[0]-out[1]).max(), np.abs(out[1]).max())
