"""Reverse a sequence: encoder and decoder are two nets that nobody holds together, one optimizer has both."""

import itertools
import sys

import torch
from torch import nn

torch.manual_seed(7)
vocabulary, hidden, length = 12, 24, 6


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)

    def forward(self, tokens):
        return self.gru(self.embedding(tokens))[1]


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden, vocabulary)

    def forward(self, token, state):
        output, state = self.gru(self.embedding(token), state)
        return self.out(output), state


encoder, decoder = Encoder(), Decoder()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(itertools.chain(encoder.parameters(), decoder.parameters()), lr=0.1)
for step in range(20):
    source = torch.randint(1, vocabulary, (16, length))
    target = source.flip(1)
    state = encoder(source)
    token = torch.zeros(16, 1, dtype=torch.long)
    loss = 0
    for t in range(length):
        logits, state = decoder(token, state)
        loss = loss + criterion(logits[:, 0], target[:, t])
        token = target[:, t : t + 1]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item() / length:.5f}")
torch.save({"encoder": encoder.state_dict(), "decoder": decoder.state_dict()}, sys.argv[1])
