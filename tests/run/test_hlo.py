import pytest

from flaxcls.run.hlo import collectives

PROGRAM = """
  %all-reduce.3 = (f32[8]{0}, bf16[4,2]{1,0}) all-reduce(%a), replica_groups={{0,1},{2,3}}, metadata={op_name="f/sum"}
  ROOT %all-gather-start.1 = (f32[1,6]{1,0}, f32[4,6]{1,0}) all-gather-start(%c), replica_groups=[1,4]<=[4]
  %reduce-scatter = f32[3]{0} reduce-scatter(%d), dimensions={0}
  %r = ((f32[8]{0}, f32[2]{0}), (f32[8]{0}, f32[2]{0})) all-reduce-start(%g), replica_groups=mesh['a'=4,'b'=2] {'b'}
  %s = f32[5]{0} all-reduce(%h), replica_groups=mesh['a'=4,'b'=2] {'a':(1)2,'b'}
  %p = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%i), source_target_pairs={{0,1}}
  %add = f32[8]{0} add(%all-reduce.3, %e)
"""


def test_each_is_found_with_its_bytes_and_group():
    found = collectives(PROGRAM, 4)
    assert [(one.kind, one.bytes, one.group) for one in found] == [
        ("all-reduce", 48, 2),
        ("all-gather", 96, 4),
        ("reduce-scatter", 12, 4),
        ("all-reduce", 40, 2),
        ("all-reduce", 20, 4),
        ("collective-permute", 32, 4),
    ]
    assert found[0].shapes == ((8,), (4, 2))
    assert found[0].operation == "f/sum"


def test_what_is_sent_by_the_best_algorithms():
    assert [one.sent for one in collectives(PROGRAM, 4)] == pytest.approx([48, 72, 36, 40, 30, 32])
