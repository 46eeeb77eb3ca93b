"""Multilayer perceptrons for the kernels: forward and backward of a block of rows, in registers.

A block is ``BLOCK`` rows of a batch. Inside a block the batch is the *last* axis: activations are ``[features, BLOCK]``, so
that every loop runs along the batch, whatever the widths of the layers, and a layer is one product ``W x`` with the
weights as torch stores them. All three products of backpropagation (``W x``, ``Wᵀ δ``, ``δ xᵀ``) are one function.

A layer is described by six integers: inputs, outputs, where its weights and its bias start in the flat parameter vector,
and where its input and its output stand in the scratch memory.
"""

from __future__ import annotations

from upslope.fast.layout import BLOCK, IDENTITY, LAYER, RELU, TANH, WIDTH
from upslope.fast.registers import Floats, Integers, Register, at_least, at_most, fill, load, shift, spread, store, where_positive


def padded(count: int) -> int:
    return (count + WIDTH - 1) // WIDTH * WIDTH


def multiply(
    a: Floats, a_row: int, a_column: int, b: Floats, b_row: int, c: Floats, c_row: int, rows: int, inner: int, columns: int
) -> None:
    """``c[i, j] = Σ_k a[i, k] b[k, j]`` by tiles of 4 rows × ``WIDTH`` columns whose sums stay in registers.

    ``a`` has any strides; ``b`` and ``c`` have rows of any stride and adjacent columns, whose number is rounded up to
    full registers; ``c`` has room for a multiple of 4 rows.
    """
    for j in range(0, columns, WIDTH):
        for i in range(0, rows, 4):
            # past the last row the tile repeats it, into the room below
            a0 = shift(a, i * a_row)
            a1 = shift(a, min(i + 1, rows - 1) * a_row)
            a2 = shift(a, min(i + 2, rows - 1) * a_row)
            a3 = shift(a, min(i + 3, rows - 1) * a_row)
            s0, s1, s2, s3 = spread(0.0), spread(0.0), spread(0.0), spread(0.0)
            for k in range(inner):
                x = load(b, k * b_row + j)
                s0 += fill(a0, k * a_column) * x
                s1 += fill(a1, k * a_column) * x
                s2 += fill(a2, k * a_column) * x
                s3 += fill(a3, k * a_column) * x
            to = i * c_row + j
            store(c, to, s0)
            store(c, to + c_row, s1)
            store(c, to + 2 * c_row, s2)
            store(c, to + 3 * c_row, s3)


def tanh(x: Register) -> Register:
    """``x P(x²) / Q(x²)``, minimax on |x| ≤ 7.9, beyond which tanh is 1 in float32; right to 3.2e-7."""
    x = at_least(at_most(x, 7.9), -7.9)
    t = x * x
    p = t * 2.410597937e-11 - 1.490657874e-08
    p = p * t + 9.939307963e-06
    p = p * t + 2.992111107e-03
    p = p * t + 1.298492297e-01
    p = p * t + 9.999999833e-01
    q = t * 2.380887300e-04 + 2.405315156e-02
    q = q * t + 4.631824092e-01
    q = q * t + 1.0
    return x * p / q


def forward(layers: Integers, count: int, parameters: Floats, scratch: Floats, columns: int, activation: int) -> None:
    """Outputs of all layers for one block, each at its place in ``scratch``; the last layer has no activation."""
    for number in range(count):
        layer = shift(layers, number * LAYER)
        inputs, outputs = layer[0], layer[1]
        y = shift(scratch, layer[5])
        multiply(shift(parameters, layer[2]), inputs, 1, shift(scratch, layer[4]), BLOCK, y, BLOCK, outputs, inputs, columns)
        kind = activation if number + 1 < count else IDENTITY
        biases = shift(parameters, layer[3])
        for i in range(outputs):
            bias = fill(biases, i)
            for j in range(i * BLOCK, i * BLOCK + columns, WIDTH):
                z = load(y, j) + bias
                if kind == TANH:
                    z = tanh(z)
                elif kind == RELU:
                    z = at_least(z, 0.0)
                store(y, j, z)


def backward(
    layers: Integers, count: int, parameters: Floats, gradient: Floats, scratch: Floats, rows: int, activation: int, delta: Floats,
    other: Floats, rowwise: Floats, product: Floats,
) -> None:  # fmt: skip
    """Add one block's share to the flat ``gradient``; ``delta`` comes in as ∂/∂output, ``[outputs, BLOCK]``.

    Scratch: ``other`` like ``delta``, ``rowwise`` for a layer's input with the batch as the first axis, ``product`` for ``δ xᵀ``.
    """
    for step in range(count):
        number = count - 1 - step
        layer = shift(layers, number * LAYER)
        inputs, outputs = layer[0], layer[1]
        x = shift(scratch, layer[4])
        weights_backward(x, inputs, outputs, rows, shift(gradient, layer[2]), shift(gradient, layer[3]), delta, rowwise, product)
        if number > 0:
            columns = padded(rows)
            multiply(shift(parameters, layer[2]), 1, inputs, delta, BLOCK, other, BLOCK, inputs, outputs, columns)
            for i in range(inputs):
                for j in range(i * BLOCK, i * BLOCK + columns, WIDTH):
                    y = load(x, j)
                    d = load(other, j)
                    if activation == TANH:
                        store(other, j, d - d * y * y)
                    else:
                        store(other, j, where_positive(y, d))
            delta, other = other, delta


def weights_backward(
    x: Floats, inputs: int, outputs: int, rows: int, weights: Floats, biases: Floats, delta: Floats, rowwise: Floats, product: Floats
) -> None:
    """Add ``δ xᵀ`` to the gradient of one layer's weights, and the sums of ``δ`` to its biases'."""
    stride = padded(inputs)
    for k in range(inputs):
        for j in range(rows):
            rowwise[j * stride + k] = x[k * BLOCK + j]
    multiply(delta, BLOCK, 1, rowwise, stride, product, stride, outputs, rows, stride)
    for i in range(outputs):
        for k in range(inputs):
            weights[i * inputs + k] += product[i * stride + k]
        total = delta[i * BLOCK]
        for j in range(1, rows):
            total += delta[i * BLOCK + j]
        biases[i] += total
