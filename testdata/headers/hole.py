"""A GGUF file whose weights are a hole, for the scripts beside it."""
import struct

def text(item):
    raw = item if isinstance(item, bytes) else item.encode()
    return struct.pack('<Q', len(raw)) + raw

def write(path, keys, tensors, sizes):
    """`keys` are pairs of a name and the bytes of a typed value, `tensors` a name, a shape and a type each; `sizes` has elements and
    bytes of a block by type."""
    head = b'GGUF' + struct.pack('<IQQ', 3, len(tensors), len(keys)) + b''.join(text(name) + raw for name, raw in keys)
    end = 0
    for name, shape, ty in tensors:
        head += text(name) + struct.pack('<I', len(shape)) + struct.pack(f'<{len(shape)}Q', *shape) + struct.pack('<IQ', ty, end)
        block, size = sizes[ty]
        count = 1
        for n in shape:
            count *= n
        end += (count // block * size + 31) // 32 * 32
    head += b'\0' * (-len(head) % 32)
    with open(path, 'wb') as file:
        file.write(head)
        file.truncate(len(head) + end)
