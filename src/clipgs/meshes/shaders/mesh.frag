#version 330 core

// A matt surface under lights that are fixed in the world: its colour is the same in every view, as that of Gaussians
// without spherical harmonics. pyrender's own shader adds gloss, lights the back of a face from the wrong side, has no
// alpha cutoff and encodes with a gamma of 2.2 instead of sRGB.

struct DirectionalLight {
    vec3 color;
    float intensity;
    vec3 direction;
};

struct Material {
    vec3 emissive_factor;
    vec4 base_color_factor;
    float metallic_factor;   // 1 where alpha is written (BLEND), else 0
    float roughness_factor;  // the alpha below which nothing is drawn
#ifdef HAS_BASE_COLOR_TEX
    sampler2D base_color_texture;
#endif
#ifdef HAS_EMISSIVE_TEX
    sampler2D emissive_texture;
#endif
};

uniform Material material;
uniform DirectionalLight directional_lights[MAX_DIRECTIONAL_LIGHTS];
uniform int n_directional_lights;
uniform vec3 cam_pos;
uniform vec3 ambient_light;

in vec3 frag_position;
#ifdef NORMAL_LOC
in vec3 frag_normal;
#endif
#ifdef TEXCOORD_0_LOC
in vec2 uv_0;
#endif
#ifdef COLOR_0_LOC
in vec4 vertex_color;
#endif

out vec4 frag_color;

vec3 srgb_to_linear(vec3 c)
{
    return mix(c / 12.92, pow((c + 0.055) / 1.055, vec3(2.4)), step(0.04045, c));
}

vec3 linear_to_srgb(vec3 c)
{
    c = clamp(c, 0.0, 1.0);
    return mix(c * 12.92, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c));
}

void main()
{
    vec4 base = material.base_color_factor;
#ifdef HAS_BASE_COLOR_TEX
    vec4 texel = texture(material.base_color_texture, uv_0);
    base *= vec4(srgb_to_linear(texel.rgb), texel.a);
#endif
#ifdef COLOR_0_LOC
    base *= vertex_color;
#endif
    vec3 emitted = material.emissive_factor;
#ifdef HAS_EMISSIVE_TEX
    emitted *= srgb_to_linear(texture(material.emissive_texture, uv_0).rgb);
#endif

    // Both sides of a face are lit as the visible side, whatever the winding.
    vec3 face_normal = normalize(cross(dFdx(frag_position), dFdy(frag_position)));
    face_normal = dot(face_normal, cam_pos - frag_position) < 0.0 ? -face_normal : face_normal;
    vec3 n = face_normal;
#ifdef NORMAL_LOC
    if (dot(frag_normal, frag_normal) > 0.0) {
        n = normalize(frag_normal);
        n = dot(n, face_normal) < 0.0 ? -n : n;
    }
#endif
#ifdef CUTS_ALPHA
    // Not for opaque meshes: with a discard the depth test comes after the shader, which takes a fifth more time.
    if (base.a < material.roughness_factor) discard;
#endif

    vec3 light = ambient_light;
    for (int i = 0; i < n_directional_lights; i++) {
        float facing = max(dot(n, -directional_lights[i].direction), 0.0);
        light += directional_lights[i].intensity * directional_lights[i].color * facing;
    }
    frag_color = vec4(linear_to_srgb(max(base.rgb * light, emitted)), mix(1.0, base.a, material.metallic_factor));
}
